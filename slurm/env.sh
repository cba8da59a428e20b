# shellcheck shell=bash
# The one file to edit. Each value can also be given in the environment: NODES=4 bash slurm/finetune_coco.sh
# (`-` keeps a value that is given empty, `:-` does not)

# --- what is asked of SLURM
ACCOUNT=${ACCOUNT-}                        # --account; empty: the default one
PARTITION=${PARTITION-}                    # --partition; empty: the default one
TIME_LIMIT=${TIME_LIMIT:-24:00:00}         # of a job; a run that needs longer saves, is requeued and goes on
NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}          # 0: no GPU, the ranks compute on CPUs
TASKS_PER_NODE=${TASKS_PER_NODE:-$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))}  # ranks of a node, one a GPU
CPUS_PER_TASK=${CPUS_PER_TASK:-8}
SIGNAL_SECONDS=${SIGNAL_SECONDS:-120}      # before the time limit: USR1, to save and leave
SBATCH_MORE=${SBATCH_MORE-}                # further options of sbatch, e.g. "--qos=long --mem=0 --exclusive"
GPU_OPTIONS=${GPU_OPTIONS---gpu-bind=none} # of srun. NVLink between the GPUs of a node needs each task to see them all;
                                           # "--gpus-per-task=1" shows each task its own alone, which works too
CPU_OPTIONS=${CPU_OPTIONS---cpu-bind=cores}
SRUN_MORE=${SRUN_MORE-}                    # further options of srun
END_AFTER=${END_AFTER:-60}                 # seconds after the first rank's end at which the others are killed

# --- software: run in the repository before anything else, on the login node and in each job
ACTIVATE=${ACTIVATE-'[ ! -f .venv/bin/activate ] || . .venv/bin/activate'}   # e.g. "module load cuda/12.8; . .venv/bin/activate"
PYTHON=${PYTHON:-python}

# --- places, seen by all nodes
DATA=${DATA:-shards/coco}                  # made by slurm/pack.sh
FLICKR=${FLICKR:-shards/flickr}            # the DATA of slurm/finetune_flickr.sh
RUNS=${RUNS:-runs}                         # a folder in it for each NAME
INIT=${INIT-}                              # where pre-training or stage 1 starts: a run, or a Hugging Face folder; empty: fresh weights

# --- DeepSpeed and the GPU
DS_CONFIG=${DS_CONFIG:-ds_configs/zero2_bf16.json}
GPU_GIB=${GPU_GIB-80}                      # memory of a GPU: a run that is estimated to need more is refused; empty: no such check
TFLOPS=${TFLOPS-}                          # of a rank, for the estimate of hours; empty: measured where the check runs
ESTIMATE=${ESTIMATE:-yes}                  # no: the check leaves the estimate of memory, disk and hours out

# --- packing (slurm/pack.sh)
SLICES=${SLICES:-8}                        # tasks of the job array
PACK_CPUS=${PACK_CPUS:-8}                  # processes of one
PACK_PARTITION=${PACK_PARTITION-$PARTITION}
