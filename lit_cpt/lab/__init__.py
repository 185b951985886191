"""The laboratory: grids of runs that share their trunks, run side by side, and what their scores allow to say.

`grid` reads a file into arms, `trunk` works out what they share, `branching` gives an arm the records of the run it
goes on from, `side_by_side` runs processes, `running` trains the arms, `arms_table` computes and prints the comparison.
"""
