//! Measures streams of the kernels' TCP over a bad wire:
//! `goodput loss=1%,delay=10ms 1500 cubic bbr`, as root; `perfect` is a wire without faults.

fn main() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    measure()?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn measure() -> std::io::Result<()> {
    use std::time::Duration;

    use unisockets_wire::{Conditions, Stream, Wire};

    let mut words = std::env::args().skip(1);
    let description = words.next().unwrap_or_else(|| "perfect".to_owned());
    let conditions = match description.as_str() {
        "perfect" => Conditions::default(),
        text => text.parse().map_err(std::io::Error::other)?,
    };
    let mtu = words.next().map_or(Ok(1_500), |text| text.parse()).map_err(std::io::Error::other)?;
    for congestion in words {
        let congestion: &'static str = congestion.leak();
        let wire = Wire::new(conditions, conditions, mtu)?;
        let stream = Stream { congestion, warm_up: Duration::from_secs(2), duration: Duration::from_secs(5) };
        let goodput = wire.goodput(stream)?.bytes_per_s() / 1e6;
        println!("{description} mtu={mtu} {congestion}: {goodput:.1} MB/s, {:?}", wire.counts(0));
    }
    Ok(())
}
