"""How many users there are at each moment of a load test, a file for each shape. Locust takes one of them."""
