def main(word):
    return word.upper()
