"""Run one seed and print its trace: python -m tests.simulation SEED [long]"""

import logging
import sys

from tests.simulation.scenario import Broken, Simulation

logging.disable()
simulation = Simulation(int(sys.argv[1]), is_long="long" in sys.argv[2:])
try:
    simulation.run()
except Broken as exc:
    print("\n".join(simulation.world.trace))
    sys.exit(str(exc).splitlines()[0])
print("\n".join(simulation.world.trace))
print("trace", simulation.world.digest())
