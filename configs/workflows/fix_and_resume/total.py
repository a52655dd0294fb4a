def main(rows):
    return sum(rows)
