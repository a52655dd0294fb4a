def main():
    return "sorry: nothing was charged"
