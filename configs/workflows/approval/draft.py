def main():
    return "headrace 0.1 is out"
