import time


def main(order):
    return {"ready": time.time() >= order["ready_at"]}
