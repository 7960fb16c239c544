"""`python -m papers list | reproduce | report | record | verify | bench NAME`: the front door that make calls."""

from common.command import front_door
from common.errors import main

if __name__ == "__main__":
    main(front_door)
