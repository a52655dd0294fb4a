def main(fail):
    if fail:
        raise RuntimeError("the payment was refused")
    return "paid"
