#!/bin/bash
# A job of dlplatform. For your site copy this file, change it, and name it as slurm.template=FILE.
{{options}}

# What the site needs before Python starts: slurm.setup=[...]
{{setup}}

folder={{folder}}
trap 'heard=yes; again=yes; kill -USR1 $job 2>/dev/null' USR1 # the time limit is near: save, come back
trap 'heard=yes; kill -USR1 $job 2>/dev/null' TERM            # the job is to end: save

touch "$folder/slurm.began"
# This starts the steps of the job, hands signals on to them, and ends as they do:
{{steps}}
{{python}} -m launch.slurm "$folder" &
job=$!
heard=yes
while [ "$heard" ]; do # wait also returns when a trap has run
    heard=
    wait $job
    code=$?
done

# 75: saved on request (138: asked before it could hear). 4: a node, a box or a worker was lost,
# which is worth another try if the job has saved something since it began.
[ $code = 4 ] && [ "$folder/checkpoints/latest/state.json" -nt "$folder/slurm.began" ] && again=yes
if [ "$again" ] && { [ $code = 75 ] || [ $code = 138 ] || [ $code = 4 ]; }; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt {{restarts}} ]; then
        echo "dlp: back to the queue, exit code $code, restart $((${SLURM_RESTART_COUNT:-0} + 1)) of {{restarts}}"
        trap - USR1 TERM
        scontrol requeue "$SLURM_JOB_ID" && exec sleep 60 # until Slurm ends it: it has not failed
    fi
fi
exit $code
