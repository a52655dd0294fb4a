def main(state):
    value = state["value"]
    return {"value": value // 2 if value % 2 == 0 else 3 * value + 1, "steps": state["steps"] + 1}
