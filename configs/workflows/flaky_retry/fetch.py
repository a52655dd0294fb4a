def main(value, context):
    if context.attempt < 3:
        raise ConnectionError(f"try {context.attempt} went wrong, as arranged")
    # The same for every try of this step: give it to a service, and the effect happens once.
    return {"attempts": context.attempt, "idempotency_key": context.idempotency_key}
