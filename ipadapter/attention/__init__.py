"""The paper: decoupled cross-attention, and when, where, how strongly, for which rows it acts."""
