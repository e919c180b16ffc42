"""The activity proofs of the single factors, which model/proof.py runs. They do not import the layers that they
measure."""
