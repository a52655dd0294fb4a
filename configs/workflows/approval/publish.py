def main(text):
    return f"published: {text}"
