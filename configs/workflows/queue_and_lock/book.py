def main(account, context):
    # A store that remembers the highest fence can refuse a writer that lost the lock without knowing.
    return {"account": account, "fence": context.fence}
