# SPDX-License-Identifier: GPL-2.0-or-later
# gnuplot -c plot.gp WRITER.csv: draws, as SVG, what bench/plot has written there.
csv = ARG1
eval system("sed -n 's/^# //p' '" . csv . "'") # ready, switching, switched
set datafile separator comma
set datafile columnheaders
stats csv using "time_s" nooutput name "time"

# White, since a page may be dark.
set terminal svg size 860,960 font "sans-serif,13" background "white"
set multiplot layout 6,1 margins 0.07,0.975,0.045,0.935 spacing 0,0.045
set xrange [time_min:time_max]
set format x ""
set grid linecolor "#dddddd" linetype 1
set border 3 linecolor "#888888"
set tics scale 0 textcolor "#333333"
set key at graph 1, 1.02 right bottom horizontal samplen 1.2 textcolor "#333333"
blue = "#0072b2"; orange = "#d55e00"; green = "#009e73"

# The marks go through all panels, their names above the first.
set for [i=1:2] arrow i from (i == 1 ? 0 : ready), graph 0 rto 0, graph 1 nohead linecolor "#333333" dashtype 2
set object rectangle from switching, graph 0 to switched, graph 1 behind fillstyle solid noborder fillcolor "#cccccc"
set label 1 "start" at 0, graph 1.32 center
set label 2 "ready" at ready, graph 1.32 center
set label 3 "switchover" at (switching + switched) / 2, graph 1.32 center

# Nothing, and no line across, while it is not throttled.
throttled(what) = column("limit") > 0 ? what : NaN
heading(text) = "set label 9 '" . text . "' at graph 0, 1.09 left"

eval heading("What the guest writes, 4 KiB each, per second")
set yrange [0:*]
set ytics 5000
plot csv using "time_s":(throttled(10000)) with filledcurves y1=0 linecolor rgb orange \
        fillstyle transparent solid 0.2 title "throttled", \
    csv using "time_s":"writes_per_s" with lines linewidth 2 linecolor rgb blue notitle
unset for [i=1:3] label i

eval heading("Its slowest write, ms")
set logscale y
set yrange [0.5:5000]
set ytics (1, 10, 100, 1000)
plot csv using "time_s":(throttled(column("wait_ms_max"))) with lines linewidth 2 linecolor rgb orange \
        title "longest wait that the throttle may impose", \
    csv using "time_s":"slowest_write_ms" with lines linewidth 2 linecolor rgb blue notitle
unset logscale y
set yrange [0:*]

eval heading("New work, MiB/s")
set ytics 10
plot csv using "time_s":"drain" with lines linewidth 2 linecolor rgb green title "what the link drains", \
    csv using "time_s":(throttled(column("limit"))) with lines linewidth 2 linecolor rgb orange title "throttled to", \
    csv using "time_s":"new_work" with lines linewidth 2 linecolor rgb blue title "made"

eval heading("Not at the destination yet, MiB")
set ytics 32
left = 'filledcurves x1 linecolor rgb blue fillstyle transparent solid'
plot csv using "time_s":(column("dirty") + column("lag")) with @left 0.25 title "written, and in the log", \
    csv using "time_s":"dirty" with @left 0.5 title "dirty"

eval heading("Lag: how old the oldest of the log is, ms")
set ytics 1000
plot csv using "time_s":"lag_ms" with lines linewidth 2 linecolor rgb blue notitle

eval heading("Over the link, Mbit/s")
set yrange [0:220<*]
set ytics 100
set format x "%g s"
plot csv using "time_s":"link_mbit_per_s" with @left 0.5 notitle, \
    200 with lines linecolor rgb green title "what it carries"
