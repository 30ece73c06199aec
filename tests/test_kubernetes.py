"""The manifests of launch/kubernetes: of the right form, and what they start here trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline_local.ranks.rank import RankInfo
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "launch" / "kubernetes"
MANIFESTS = ["job.yaml", "pytorchjob.yaml", "trainjob.yaml"]


def load(name):
    *others, main = yaml.safe_load_all((FOLDER / name).read_text())
    return main, others


# -- the form --------------------------------------------------------------------------------


def check(model, tree):
    """What the model does not know it leaves out, and what has another type it refuses."""
    assert model.from_dict(tree).to_dict() == tree


def test_forms():
    from kubeflow_trainer_api import models

    job, (service,) = load("job.yaml")
    check(models.IoK8sApiBatchV1Job, job)
    check(models.IoK8sApiCoreV1Service, service)
    check(models.TrainerV1alpha1TrainJob, load("trainjob.yaml")[0])
    torch_job, _ = load("pytorchjob.yaml")
    for replicas in torch_job["spec"]["pytorchReplicaSpecs"].values():
        check(models.IoK8sApiCoreV1PodTemplateSpec, replicas["template"])


def test_a_wrong_form_is_noticed():
    from kubeflow_trainer_api import models

    job, _ = load("job.yaml")
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(AssertionError):
        check(models.IoK8sApiBatchV1Job, job)


def as_read(job):
    """A PyTorchJob as the client of version 1 reads it, which leaves out what it does not know."""
    from kubeflow.training.api_client import ApiClient

    client = ApiClient()
    read = client.deserialize(SimpleNamespace(data=json.dumps(job)), "KubeflowOrgV1PyTorchJob")
    return client.sanitize_for_serialization(read)


def as_texts(tree):
    """The same with numbers as texts: a quantity, such as that of GPUs, may be either."""
    if isinstance(tree, dict):
        return {key: as_texts(value) for key, value in tree.items()}
    return [as_texts(item) for item in tree] if isinstance(tree, list) else f"{tree}"


def test_the_form_of_a_pytorchjob():
    job, _ = load("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert as_texts(as_read(job)) == as_texts(job)
    assert job["spec"]["pytorchReplicaSpecs"].keys() == {"Master", "Worker"}
    for replicas in job["spec"]["pytorchReplicaSpecs"].values():
        assert replicas["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        (container,) = replicas["template"]["spec"]["containers"]
        assert container["name"] == "pytorch", "the operator sets the environment of no other"


@pytest.mark.parametrize("path", [("spec", "runPolicy"), ("spec", "pytorchReplicaSpecs", "Worker")])
def test_a_wrong_form_of_a_pytorchjob_is_noticed(path):
    job, _ = load("pytorchjob.yaml")
    part = job
    for key in path:
        part = part[key]
    part["backOffLimit"] = 1
    assert as_texts(as_read(job)) != as_texts(job)


def test_a_jobs_pods_find_the_first_one():
    job, (service,) = load("job.yaml")
    pod = job["spec"]["template"]
    name, domain = job["metadata"]["name"], service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == domain
    address = {v["name"]: v.get("value") for v in container(job)["env"]}
    assert address["MASTER_ADDR"] == f"{name}-0.{domain}", "as an Indexed Job names its pods"
    assert address["MASTER_PORT"] == f"{service['spec']['ports'][0]['port']}"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(address["WORLD_SIZE"])
    (rule,) = [r for r in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert rule["onExitCodes"]["containerName"] == container(job)["name"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_prepared(name):
    """An unknown user, a folder that outlives the pod, shared memory, and time to save."""
    (FOLDER / "README.md").read_text().index(name)
    spec, (mounted,) = pod_spec(load(name)[0])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["terminationGracePeriodSeconds"] >= 60
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in mounted["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in mounts["/runs"]


def pod_spec(job):
    spec = job["spec"]
    if job["kind"] == "TrainJob":
        (patch,) = spec["runtimePatches"]
        (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        assert replicated["name"] == "node", "the runtime's own name"
        spec = replicated["template"]["spec"]
    if job["kind"] == "PyTorchJob":
        spec = spec["pytorchReplicaSpecs"]["Master"]
    return spec["template"]["spec"], spec["template"]["spec"]["containers"]


# -- what it starts ----------------------------------------------------------------------------


def container(job):
    return job["spec"]["trainer"] if job["kind"] == "TrainJob" else pod_spec(job)[1][0]


def environment(job, index, port):
    """What the controllers give to the pod of an index; names of pods are this host's here."""
    own = {}
    for variable in container(job).get("env", []):
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            own[variable["name"]] = f"{index}"
        else:
            own[variable["name"]] = variable["value"]
    match job["kind"]:
        case "Job":
            own |= {"JOB_COMPLETION_INDEX": f"{index}"}
            own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
        case "PyTorchJob":  # setPodEnv of pkg/controller.v1/pytorch/envvar.go, without nprocPerNode
            replicas = job["spec"]["pytorchReplicaSpecs"].values()
            own |= {"PYTHONUNBUFFERED": "1", "RANK": f"{index}"}
            own |= {"WORLD_SIZE": f"{sum(each['replicas'] for each in replicas)}"}
            own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
            own |= {"PET_NODE_RANK": f"{index}", "PET_NNODES": own["WORLD_SIZE"]}
            own |= {"PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": f"{port}"}
        case "TrainJob":  # EnforceMLPolicy of pkg/runtime/framework/plugins/torch/torch.go
            trainer = job["spec"]["trainer"]
            own |= {"PET_NNODES": f"{trainer['numNodes']}", "PET_NODE_RANK": f"{index}"}
            own |= {"PET_NPROC_PER_NODE": f"{trainer['numProcPerNode']}"}
            own |= {"PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": f"{port}"}
    return own


@pytest.mark.parametrize("name", ["job.yaml", "pytorchjob.yaml"])
def test_each_pod_is_a_rank(name, monkeypatch):
    job, _ = load(name)
    for index in range(2):
        for variable, value in environment(job, index, 29500).items():
            monkeypatch.setenv(variable, value)
        assert RankInfo.from_environment() == RankInfo(index, 2, 0, 1, launched=True)


ENTRYPOINT = {"pipeline-local": "pipeline_local", "torchrun": "torch.distributed.run"}
FEWER = ["train.epochs=null", "train.steps=4", "parallel.threads=1", "parallel.backend=gloo"]


@pytest.mark.long
@pytest.mark.parametrize("name", MANIFESTS)
def test_the_pods_train(name, tmp_path):
    job, _ = load(name)
    pod, port = container(job), free_port()
    program, *given = [*pod.get("command", ["pipeline-local"]), *pod["args"]]
    arguments = [word.replace("/runs/", f"{tmp_path}/") for word in given]
    command = [sys.executable, "-m", ENTRYPOINT[program], *arguments, *FEWER]
    inherited = {"PATH": os.environ["PATH"], "HOME": f"{tmp_path}", "OMP_NUM_THREADS": "1"}
    inherited["PYTHONPATH"] = f"{ROOT}"
    pods = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | environment(job, index, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [pod.communicate(timeout=100)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert "2 stages on cpu over gloo" in said[0]
    assert (tmp_path / "digits" / "summary.json").is_file()
