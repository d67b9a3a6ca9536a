//! Whether a figure is what it was to be.

/// One line that `benches/run` repeats at the end.
pub(crate) fn print_target(what: &str, figure: &str, goal: &str, met: bool) {
    println!("target: {what:<52} {figure:<40} {goal:<16} {}", if met { "met" } else { "missed" });
}
