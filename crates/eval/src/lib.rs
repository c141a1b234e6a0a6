//! Tasks, verifiers and accuracy against thinking budget.
