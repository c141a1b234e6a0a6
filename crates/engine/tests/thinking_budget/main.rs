//! The thinking budget: its contract case by case, and against a naive implementation.

mod cuts;
mod ends;
mod naive;
mod random;
mod run;
mod splits;
mod toy;
