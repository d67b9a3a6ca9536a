//! Implements what devices ask of the machine ([`MsiRoutes`], [`Doorbells`]) over KVM.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Doorbells, MsiMessage, MsiRoute, MsiRoutes, RouteId};
use crate::kvm::Vm;

/// MSI routes: each has a GSI, which is its number, and an eventfd.
///
/// The eventfd is an irqfd only while the route is unmasked. While it is masked KVM doesn't listen, so an edge stays in
/// the eventfd's counter, and KVM finds it there when it listens again: that is how no edge is lost.
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
        route.message = message;
        if route.masked { Ok(()) } else { self.publish(&routes) }
    }

    fn mask(&self, id: RouteId, masked: bool) -> io::Result<()> {
        let mut routes = self.lock();
        let route = find(&mut routes, id)?;
        if std::mem::replace(&mut route.masked, masked) == masked {
            return Ok(());
        }
        if masked {
            return self.vm.remove_irqfd(&route.evt, id.0);
        }
        self.publish(&routes)?;
        self.vm.add_irqfd(&find(&mut routes, id)?.evt, id.0)
    }
}

/// Doorbells are registered by the VM's main thread: that waits for the kernel for milliseconds, and a vCPU has better
/// things to do. Until then the guest's notification arrives as an exit.
pub(super) struct DoorbellQueue {
    requests: Mutex<Vec<DoorbellRequest>>,
    evt: EventFd,
}

struct DoorbellRequest {
    add: bool,
    gpa: u64,
    value: u32,
    evt: Arc<EventFd>,
}

impl DoorbellQueue {
    /// `evt` is signalled when there is something to [`apply`](Self::apply).
    pub(super) fn new(evt: EventFd) -> Self {
        Self { requests: Mutex::default(), evt }
    }

    /// Does what was asked for since the last call, in that order. Called on the VM's main thread.
    pub(super) fn apply(&self, vm: &Vm) {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        for request in requests {
            let (evt, gpa, value) = (request.evt.as_ref(), request.gpa, request.value);
            let result = if request.add {
                vm.add_ioeventfd(evt, gpa, value)
            } else {
                vm.remove_ioeventfd(evt, gpa, value)
            };
            if let Err(error) = result {
                // Without a doorbell every notification is an exit: slower, and right.
                log::debug!("doorbell at {gpa:#x}: {error}");
            }
        }
    }

    fn push(&self, request: DoorbellRequest) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        if let Err(error) = self.evt.write(1) {
            log::debug!("doorbell queue: {error}");
        }
    }
}

impl Doorbells for DoorbellQueue {
    fn add(&self, gpa: u64, value: u32, evt: &Arc<EventFd>) {
        self.push(DoorbellRequest { add: true, gpa, value, evt: evt.clone() });
    }

    fn remove(&self, gpa: u64, value: u32, evt: &Arc<EventFd>) {
        self.push(DoorbellRequest { add: false, gpa, value, evt: evt.clone() });
    }
}
