def main():
    raise RuntimeError("the card was refused")
