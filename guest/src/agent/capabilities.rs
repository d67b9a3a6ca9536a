//! What a process may do: the five sets of capabilities, as the host has sent them.

use std::io;

use bothy_guest::spec::Capabilities;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities as capabilities_of, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Each capability that a set may have, by its bit.
fn each() -> impl Iterator<Item = CapabilitySet> {
    (0..64).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

/// Takes all that are not in the set out of the bounding set, for this process and all that come of
/// it.
pub(crate) fn bound(capabilities: &Capabilities) -> io::Result<()> {
    for capability in each().filter(|capability| capabilities.bounding & capability.bits() == 0) {
        match remove_capability_from_bounding_set(capability) {
            // The kernel has no more of them.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Gives this process the other four sets, without what it lacks itself: in a machine it has all.
/// It must be the user that it will be, since a change of the user takes some away.
pub(crate) fn set(capabilities: &Capabilities) -> io::Result<()> {
    let present = capabilities_of(None)?.permitted;
    let set = |bits| CapabilitySet::from_bits_retain(bits) & present;
    let sets = CapabilitySets {
        effective: set(capabilities.effective),
        permitted: set(capabilities.permitted),
        inheritable: set(capabilities.inheritable),
    };
    set_capabilities(None, sets)?;
    clear_ambient_capability_set()?;
    for capability in each().filter(|capability| set(capabilities.ambient).contains(*capability)) {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
