"""The activity proofs of the single factors; model/proof.py runs them. They import no layer that they measure."""
