//! Implements what devices ask of the machine ([`MsiRoutes`], [`Doorbells`]) over KVM.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Doorbell, Doorbells, MsiMessage, MsiRoute, MsiRoutes, RouteId};
use crate::kvm::Vm;

/// MSI routes: each has a GSI, which is its number, and an eventfd.
///
/// The eventfd is an irqfd only while the route is unmasked. While it is masked KVM doesn't listen,
/// so an edge stays in the eventfd's counter, and KVM finds it there when it listens again: that is
/// how no edge is lost.
pub(super) struct KvmRoutes {
    vm: Arc<Vm>,
    routes: Mutex<Vec<Route>>,
}

struct Route {
    evt: EventFd,
    message: MsiMessage,
    masked: bool,
}

impl KvmRoutes {
    pub(super) fn new(vm: Arc<Vm>) -> Self {
        Self { vm, routes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells KVM about every route that is unmasked.
    fn publish(&self, routes: &[Route]) -> io::Result<()> {
        let live: Vec<(u32, MsiMessage)> = (0..)
            .zip(routes)
            .filter(|(_, route)| !route.masked)
            .map(|(gsi, route)| (gsi, route.message))
            .collect();
        self.vm.set_msi_routes(&live)
    }
}

fn find(routes: &mut [Route], id: RouteId) -> io::Result<&mut Route> {
    routes.get_mut(id.0 as usize).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

impl MsiRoutes for KvmRoutes {
    fn allocate(&self) -> io::Result<MsiRoute> {
        let mut routes = self.lock();
        let id = RouteId(u32::try_from(routes.len()).map_err(io::Error::other)?);
        let evt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        routes.push(Route { evt: evt.try_clone()?, message: MsiMessage::default(), masked: true });
        Ok(MsiRoute { id, evt })
    }

    fn update(&self, id: RouteId, message: MsiMessage) -> io::Result<()> {
        let mut routes = self.lock();
        let route = find(&mut routes, id)?;
        let before = std::mem::replace(&mut route.message, message);
        if route.masked {
            return Ok(());
        }
        let published = self.publish(&routes);
        if published.is_err() {
            // The table is refused as a whole: one bad message must not keep the others from
            // changing.
            find(&mut routes, id)?.message = before;
        }
        published
    }

    fn mask(&self, id: RouteId, masked: bool) -> io::Result<()> {
        let mut routes = self.lock();
        let route = find(&mut routes, id)?;
        if route.masked == masked {
            return Ok(());
        }
        if masked {
            self.vm.remove_irqfd(&route.evt, id.0)?;
            route.masked = true;
            return Ok(());
        }
        route.masked = false;
        let unmasked =
            self.publish(&routes).and_then(|()| self.vm.add_irqfd(&find(&mut routes, id)?.evt, id.0));
        if unmasked.is_err() {
            find(&mut routes, id)?.masked = true;
        }
        unmasked
    }
}

/// Doorbells are registered by the VM's main thread: that waits for the kernel for milliseconds,
/// and a vCPU has better things to do. Until then the guest's notification arrives as an exit.
///
/// What is kept is the state that is wanted of each doorbell, not the requests: a guest that starts
/// and resets its devices in a loop makes neither the list nor the work grow.
pub(super) struct DoorbellQueue {
    bells: Mutex<Vec<Bell>>,
    evt: EventFd,
}

struct Bell {
    bell: Doorbell,
    evt: Arc<EventFd>,
    wanted: bool,
    registered: bool,
}

impl DoorbellQueue {
    /// `evt` is signalled when there is something to [`apply`](Self::apply).
    pub(super) fn new(evt: EventFd) -> Self {
        Self { bells: Mutex::default(), evt }
    }

    /// Registers or removes one doorbell, and signals again if there is more to do: between two of
    /// them the main thread looks at everything else. Called on the VM's main thread.
    pub(super) fn apply(&self, vm: &Vm) {
        let mut bells = self.lock();
        let mut changed = bells.iter_mut().filter(|bell| bell.wanted != bell.registered);
        let Some(bell) = changed.next() else { return };
        bell.registered = bell.wanted;
        let more = changed.next().is_some();
        let (add, evt, bell) = (bell.wanted, bell.evt.clone(), bell.bell);
        // vCPUs that want something of a doorbell don't wait for the kernel.
        drop(bells);
        let result = if add { vm.add_ioeventfd(&evt, bell) } else { vm.remove_ioeventfd(&evt, bell) };
        if let Err(error) = result {
            // Without a doorbell every notification is an exit: slower, and right.
            log::debug!("doorbell at {:#x}: {error}", bell.gpa);
        }
        if more {
            self.signal();
        }
    }

    fn want(&self, wanted: bool, bell: Doorbell, evt: &Arc<EventFd>) {
        let mut bells = self.lock();
        match bells.iter_mut().find(|known| known.bell == bell) {
            Some(known) => known.wanted = wanted,
            None => bells.push(Bell { bell, evt: evt.clone(), wanted, registered: false }),
        }
        drop(bells);
        self.signal();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Bell>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        if let Err(error) = self.evt.write(1) {
            log::debug!("doorbell queue: {error}");
        }
    }
}

impl Doorbells for DoorbellQueue {
    fn add(&self, bell: Doorbell, evt: &Arc<EventFd>) {
        self.want(true, bell, evt);
    }

    fn remove(&self, bell: Doorbell, evt: &Arc<EventFd>) {
        self.want(false, bell, evt);
    }
}
