def main(amount):
    return f"{amount:g} is small"
