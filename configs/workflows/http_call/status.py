def main(status):
    return f"the service answered {status}"
