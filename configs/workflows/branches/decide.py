def main(value):
    return next(answer for answer in value.values() if answer)
