import time


def main():
    return {"ready_at": time.time() + 3}
