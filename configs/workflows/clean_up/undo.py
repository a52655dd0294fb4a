def main(reserved):
    return f"seat {reserved['seat']} is free again"
