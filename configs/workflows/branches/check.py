def main(amount):
    return f"{amount:g} was checked"
