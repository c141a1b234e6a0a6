//! Tasks, verifiers and accuracy against thinking budget.

#![forbid(unsafe_code)]
