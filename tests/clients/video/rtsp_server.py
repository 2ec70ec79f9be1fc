"""An RTSP server with a moving test image, made with GStreamer; run by a Python that has GStreamer's bindings.

python rtsp_server.py 2     prints one rtsp:// address per camera, and serves them until it is terminated
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
H264 = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 config-interval=1"
MJPEG = "jpegenc ! rtpjpegpay name=pay0"
ENCODE = H264 if Gst.ElementFactory.find("x264enc") else MJPEG

server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1")
server.set_service("0")
for number in range(int(sys.argv[1])):
    factory = GstRtspServer.RTSPMediaFactory.new()
    picture = f"video/x-raw,format=I420,width={320 + 64 * number},height=240,framerate=15/1"
    factory.set_launch(f"( videotestsrc is-live=true pattern=ball ! {picture} ! {ENCODE} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory(f"/camera{number}", factory)
server.attach(None)
for number in range(int(sys.argv[1])):
    print(f"rtsp://127.0.0.1:{server.get_bound_port()}/camera{number}", flush=True)
GLib.MainLoop().run()
