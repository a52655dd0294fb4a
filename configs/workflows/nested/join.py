def main(parts):
    return " ".join(part["upper"] for part in parts)
