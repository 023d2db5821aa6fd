"""The storage network under a virtual clock: peers and their faults are made up, every decision is the product's own code.

python -m tests.simulation SEED [long]      run one seed and print its trace
python -m tests.simulation.durability       print the table of fsdecloud-durability(7)
"""
