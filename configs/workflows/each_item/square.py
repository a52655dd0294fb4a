def main(value):
    return value["number"] ** 2
