def main(seen):
    return f"work: {seen['work']}; undo: {seen['undo'] or 'not needed'}"
