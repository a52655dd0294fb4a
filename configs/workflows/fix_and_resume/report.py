def main(total):
    return f"the total is {total}"
