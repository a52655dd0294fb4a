def main(squares):
    return sum(square for square in squares if square is not None)
