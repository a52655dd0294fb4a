import random


def main(value, context):
    return random.Random(context.seed).randint(1, 100)
