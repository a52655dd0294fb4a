def main(input, context):
    return {"caption": input["generate_caption"].strip()}
