def main():
    raise ConnectionError("the survey service is away")
