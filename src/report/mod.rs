//! What bothy measured, for people and for programs.

pub mod timing;
