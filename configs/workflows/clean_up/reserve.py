def main():
    return {"seat": "12A"}
