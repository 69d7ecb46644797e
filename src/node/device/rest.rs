//! An idle userspace device rests. gotatun looks at its timers four times a second, also where nothing has a session that
//! they could be about; then our threads let these looks come late, many in one. A packet, or a question, wakes them at
//! once all the same, and what is overdue is done then.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use peervpn_platform::os::ready::Watched;
use peervpn_platform::os::{self, Timer};

/// After the last packet: no session is good for longer (REJECT_AFTER_TIME is 180 s, WireGuard paper §6.1), and a peer
/// with a persistent keepalive makes packets more often.
const SESSION: Duration = Duration::from_secs(190);
/// After it was told or asked something: a peer that is to be called makes packets by then.
const TOLD: Duration = Duration::from_secs(3);
/// As much earlier it may begin to rest.
const GRAIN: Duration = Duration::from_secs(1);
/// How late its timers may be while it rests.
const LATE: Duration = Duration::from_secs(60);

/// When something last happened. Clones are of the same device.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    /// Awake until then, in milliseconds since it began.
    awake: AtomicU64,
    /// The last thread that began to wait did so at rest.
    rests: AtomicBool,
    /// Wakes the thread that waits for all, which may have begun to wait at rest.
    alarm: Option<Watched<Timer>>,
}

impl Activity {
    /// Of a device that is being set up, on this runtime. One without an alarm never rests.
    pub fn begin() -> Self {
        let alarm = Timer::open().ok().and_then(|timer| Watched::new(timer).ok());
        let activity = Activity(Arc::new(Shared {
            began: Instant::now(),
            awake: AtomicU64::new(0),
            rests: AtomicBool::new(false),
            alarm,
        }));
        activity.told();
        activity
    }

    /// Hears the alarm. A task of its own: the thread that gets it to do thinks anew about how it waits.
    pub async fn hear(self) {
        let Some(alarm) = &self.0.alarm else { return };
        while let Ok(ready) = alarm.readable().await {
            ready.clear();
            alarm.get_ref().expired();
        }
    }

    /// It was told or asked something.
    pub fn told(&self) {
        self.stay_awake(TOLD);
    }

    fn packet(&self) {
        self.stay_awake(SESSION);
    }

    fn stay_awake(&self, time: Duration) {
        let now = self.0.began.elapsed();
        let wanted = (now + time).as_millis() as u64;
        // several threads would write it for every packet of a busy device
        if self.0.awake.load(Ordering::Relaxed) + GRAIN.as_millis() as u64 > wanted {
            return;
        }
        let until = self.0.awake.fetch_max(wanted, Ordering::SeqCst);
        if now.as_millis() as u64 > until
            && let Some(alarm) = &self.0.alarm
        {
            // fails for no time that there is
            let _ = alarm.get_ref().set(Duration::ZERO);
        }
    }

    /// For a thread that is about to wait.
    pub fn before_waiting(&self) {
        let now = self.0.began.elapsed().as_millis() as u64;
        let rests = self.0.alarm.is_some() && now > self.0.awake.load(Ordering::SeqCst);
        let rested = &self.0.rests;
        // looked at first: no thread of a busy device writes it
        if rested.load(Ordering::Relaxed) != rests && rested.swap(rests, Ordering::Relaxed) != rests && rests {
            os::release_program_pages();
        }
        os::timers_may_be_late(if rests { LATE } else { Duration::ZERO });
    }
}

/// gotatun's own sockets, whose packets are noted.
pub struct Sockets {
    activity: Activity,
    inner: UdpSocketFactory,
}

impl Sockets {
    /// As large as asked for, in bytes each way, or as the system lets them be.
    pub fn new(activity: Activity, buffer: usize) -> Self {
        let inner = UdpSocketFactory { recv_buffer_size: Some(buffer), send_buffer_size: Some(buffer) };
        Sockets { activity, inner }
    }
}

/// One way of a socket.
#[derive(Clone)]
pub struct Noted<T> {
    activity: Activity,
    inner: T,
}

impl UdpTransportFactory for Sockets {
    type Send = Noted<<UdpSocketFactory as UdpTransportFactory>::Send>;
    type Recv = Noted<<UdpSocketFactory as UdpTransportFactory>::Recv>;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Self::Send, Self::Recv)> {
        let (send, recv) = self.inner.bind(params).await?;
        let activity = self.activity.clone();
        Ok((Noted { activity: activity.clone(), inner: send }, Noted { activity, inner: recv }))
    }
}

impl<T: UdpRecv> UdpRecv for Noted<T> {
    type RecvManyBuf = T::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let received = self.inner.recv_from(pool).await?;
        self.activity.packet();
        Ok(received)
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        self.inner.recv_many_from(buffer, pool, packets).await?;
        self.activity.packet();
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.inner.enable_udp_gro()
    }
}

impl<T: UdpSend> UdpSend for Noted<T> {
    type SendManyBuf = T::SendManyBuf;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.activity.packet();
        self.inner.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.inner.max_number_of_packets_to_send()
    }

    async fn send_many_to(
        &self,
        buffer: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        self.activity.packet();
        self.inner.send_many_to(buffer, packets).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.inner.local_addr()
    }

    // other systems have no marks, and gotatun no such function there
    peervpn_platform::where_marks_are! {
        fn set_fwmark(&self, mark: u32) -> io::Result<()> {
            self.inner.set_fwmark(mark)
        }
    }
}
