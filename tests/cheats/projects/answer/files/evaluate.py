"""Judge out/answer.txt: the mean squared distance from the held-out readings."""

with open("out/answer.txt") as file:
    answer = float(file.read(100))
with open("heldout/readings.txt") as file:
    readings = [float(line) for line in file]
loss = sum((one - answer) ** 2 for one in readings) / len(readings)
print(f"METRIC loss={loss:.6f}")
