import ray


def main():
    return ray.get_runtime_context().get_assigned_resources()
