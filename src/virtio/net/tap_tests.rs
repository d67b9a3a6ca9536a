use super::super::testing::*;
use super::*;
use crate::virtio::core::testing::{as_plain_user, wait_until};
use std::io::{Read, Write};

fn config(name: &str) -> Config {
    Config { backend: name.to_owned().into(), ..Config::default() }
}

fn refused(name: &str) -> OpenError {
    Tap::open(&config(name)).unwrap_err()
}

#[test]
fn a_tap_is_opened_and_packets_go_both_ways_behind_a_header() {
    in_network_namespace("a_tap_is_opened_and_packets_go_both_ways_behind_a_header", || {
        make("t0", libc::IFF_TAP);
        let tap = open_when_free(&config("t0"));
        let mut file = tap.queues[0].0.try_clone().unwrap();
        set_up("t0", true);
        let wire = Wire::new("t0");
        wire.send(&frame(7, 100));
        let received = loop {
            // The host's own IPv6 chatter comes as well. It doesn't block: an error would end the
            // test.
            let mut bytes = [0; 2048];
            let n = file.read(&mut bytes).unwrap();
            if bytes[12 + 12..12 + 14] == ETHERTYPE.to_be_bytes() {
                break bytes[..n].to_vec();
            }
        };
        assert_eq!(received.len(), 12 + 114);
        assert_eq!(received[12..], frame(7, 100));
        assert_eq!(received[..10], [0; 10]);
        file.write_all(&[&[0; 12][..], &frame(8, 50)].concat()).unwrap();
        assert_eq!(wire.receive().unwrap(), frame(8, 50));
    });
}

#[test]
fn a_tap_that_does_not_exist_is_not_created() {
    in_network_namespace("a_tap_that_does_not_exist_is_not_created", || {
        let error = refused("t0");
        assert!(matches!(error, OpenError::Missing(_)), "{error:?}");
        assert!(error.to_string().contains("ip tuntap add dev t0 mode tap"));
        assert_eq!(interface::index("t0"), None);
    });
}

#[test]
fn a_tap_of_its_own_is_made_with_the_gateways_address_and_goes_with_its_descriptor() {
    in_network_namespace(
        "a_tap_of_its_own_is_made_with_the_gateways_address_and_goes_with_its_descriptor",
        || {
            for queues in [1, 3] {
                let (ip, gw) = ("10.9.8.2/24".parse().unwrap(), "10.9.8.1".parse().unwrap());
                let queues = std::num::NonZeroU16::new(queues);
                let config = Config { queues, ip: Some(ip), gw: Some(gw), ..config("auto") };
                let first = Tap::open(&config).unwrap();
                assert_eq!((first.name(), first.queues.len()), ("bothy0", config.queues().into()));
                // Only what is an interface's own address can be bound to.
                drop(std::net::UdpSocket::bind((gw, 0)).unwrap());
                let second = Tap::open(&self::config("auto")).unwrap();
                assert_eq!(second.name(), "bothy1");
                // Only from an interface that is up.
                let wire = Wire::new("bothy1");
                wire.send(&frame(3, 60));
                drop((first, second));
                // A child that another test forks has a copy of each descriptor until it calls
                // exec.
                wait_until("its end", || {
                    interface::index("bothy0").is_none() && interface::index("bothy1").is_none()
                });
            }
        },
    );
}

#[test]
fn a_tap_of_its_own_takes_the_right_to_make_one() {
    in_network_namespace("a_tap_of_its_own_takes_the_right_to_make_one", || {
        let error = as_plain_user(|| refused("auto"));
        // Where /dev/net/tun is root's alone, it doesn't get as far.
        assert!(matches!(error, OpenError::NoRight | OpenError::TunDenied), "{error:?}");
    });
}

#[test]
fn what_is_not_a_tap_is_refused() {
    in_network_namespace("what_is_not_a_tap_is_refused", || {
        assert!(matches!(refused("lo"), OpenError::NotATap { .. }));
        make("n0", libc::IFF_TUN);
        let error = refused("n0");
        assert!(error.to_string().starts_with("n0 is a tun, not a tap"), "{error}");
        make("m0", libc::IFF_TAP | libc::IFF_MULTI_QUEUE);
        assert!(matches!(refused("m0"), OpenError::MultiQueue(_)));
        make("s0", libc::IFF_TAP);
        let several = Config { queues: std::num::NonZeroU16::new(2), ..config("s0") };
        assert!(matches!(Tap::open(&several).unwrap_err(), OpenError::SingleQueue(_)));
    });
}

#[test]
fn a_tap_that_is_open_is_busy_until_it_is_closed() {
    in_network_namespace("a_tap_that_is_open_is_busy_until_it_is_closed", || {
        make("t0", libc::IFF_TAP);
        let tap = open_when_free(&config("t0"));
        assert!(matches!(refused("t0"), OpenError::Busy(_)));
        drop(tap);
        drop(open_when_free(&config("t0")));
        assert!(interface::index("t0").is_some(), "the interface stays");
    });
}

#[test]
fn a_tap_with_several_queues_is_for_one_vm_as_well() {
    in_network_namespace("a_tap_with_several_queues_is_for_one_vm_as_well", || {
        make("m0", libc::IFF_TAP | libc::IFF_MULTI_QUEUE);
        let config = Config { queues: std::num::NonZeroU16::new(2), ..config("m0") };
        let tap = open_when_free(&config);
        set_up("m0", true);
        assert!(matches!(Tap::open(&config), Err(OpenError::Busy(_))));
        drop(tap);
        drop(open_when_free(&config));
    });
}

#[test]
fn a_tap_of_another_user_is_refused() {
    in_network_namespace("a_tap_of_another_user_is_refused", || {
        make("t0", libc::IFF_TAP);
        let error = as_plain_user(|| refused("t0"));
        // Where /dev/net/tun is root's alone, it doesn't get as far.
        assert!(matches!(error, OpenError::NotOurs(_) | OpenError::TunDenied), "{error:?}");
    });
}
