def main(input):
    return f"Describe: {input}"
