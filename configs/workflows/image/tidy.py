def main(text):
    return " ".join(text.lower().split())
