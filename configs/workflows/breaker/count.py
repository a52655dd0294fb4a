def main(answers):
    return f"{sum(answer['status'] == 200 for answer in answers)} of {len(answers)} calls came through"
